# Sourced by quickstart.sh and variant_cpu.sh: the data and the training of small models. Later flags win over these.
data=dataset/quickstart
small=(
    --data_path $data/train.jsonl --val_path $data/val.jsonl --tokenizer_path $data/tokenizer
    --object_path $data/object.jsonl --relation_path $data/relation.jsonl
    --verification_path $data/verification.jsonl --edit_path $data/edit.jsonl
    --database_init_path $data/knowledge.json
    --dim 128 --n_layers 4 --n_heads 4 --max_seq_len 128 --vocab_size 2048
    --epochs 20 --max_steps 160 --batch_size 16 --accumulation_steps 1 --learning_rate 2e-3 --dtype float32
    --eval_interval 160 --save_interval 160 --memory_monitor_interval 50
)
